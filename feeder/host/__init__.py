"""What the host can be asked and told. All ctypes lives here; nothing here may stop the feeder from running."""
