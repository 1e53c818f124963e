"""Everything that measures or trains: hydra, trackers, data, reports. The library never imports it."""
