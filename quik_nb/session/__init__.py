"""The face of the package: a session that is put together by steps, its trainings and their handle."""
