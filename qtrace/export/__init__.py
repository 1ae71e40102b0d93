"""Recordings as pictures: a timeline for Perfetto, and one HTML file."""
