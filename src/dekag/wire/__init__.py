"""What leaves the program: files, frames, recordings, pictures."""
