"""The load generator behind `polyhead bench`: what to send (`workload`, `lengths`, `trace`), when to send it (`load`), how
(`calls`), and what came of it (`outcome` → `report` → `table`, `plot`). It calls any Polyhead server over gRPC and needs what
the client needs; only `plot` wants matplotlib.
"""
