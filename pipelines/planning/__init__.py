"""What a command would do and how long that takes on this machine, said before any of it is done."""
