"""One module per command, loaded when it is called: options in, one call, output out."""
