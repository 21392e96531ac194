"""What a command can be told: options read off its configuration, their help, what is wrong with those given."""
