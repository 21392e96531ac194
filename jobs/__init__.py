"""Commands, one file each: parse a config, build the parts, run, report."""
