"""One page about what runs left: a file of HTML that needs no network and no server."""
