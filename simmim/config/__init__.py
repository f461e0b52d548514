"""What a run is, typed; every default lives here and nothing heavy is imported."""
