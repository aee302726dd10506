"""The command line: a module a command, imported when it is called. May import everything; nothing imports it."""
