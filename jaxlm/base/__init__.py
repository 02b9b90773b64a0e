"""What every room stands on: errors, files, fields and kinds, units, the terminal."""
