"""Building the module to train from class paths, and exporting the trained model.

May import `errors`, `internals`, `metric_internals`, `normalisation`, `rng_internals`, `spec`, `tracking`,
`sync_bn`.
"""
