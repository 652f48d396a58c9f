"""What compatkit knows: `rules/*.yaml` turned into typed tables, compiled once."""
