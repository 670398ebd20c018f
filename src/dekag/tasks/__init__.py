"""What dekag does, a file for each verb; the same from Python, the command line and a job."""
