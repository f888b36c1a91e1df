"""The machine and the user: command line, errors, whole files, device, processes, seeds, pictures."""
