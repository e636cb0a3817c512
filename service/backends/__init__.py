"""The cluster and the tracking server: their protocols, with Ray and MLflow or in memory behind them.

May import `circuit`, `errors`, `jobs`, `log_files`, `training.backoff`, `training.host`,
`training.metric_names`, `training.protocol`, `training.spec`, `training.tracking`.
"""
