"""The ten steps of a run, the store, and the processes they run in."""
