"""The step, its loop over the windows of a call, and the validations that a run remembers."""
