"""Which sample stands at which position: pure functions that workers only execute."""
