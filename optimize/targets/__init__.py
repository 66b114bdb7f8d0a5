"""What a device can run, as data with sources."""
