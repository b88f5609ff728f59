"""What comes after compression: integers and other runtimes."""
