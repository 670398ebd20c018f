"""The file that carries an update."""
