"""The experiments of Ioffe & Szegedy (2015) as jobs of the service: `python -m benchmarks.paper NAME`."""
