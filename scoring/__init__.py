"""Artefacts, suspicious loading, deployments and the batch scorer."""
