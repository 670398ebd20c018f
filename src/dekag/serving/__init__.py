"""Cloud, edge and user as services. Needs the packages of `dekag[serve]`."""
