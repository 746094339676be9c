"""The sections of the page, one of each in a module and a template of its name."""
