"""Reports: what a run can do, measured and written down."""
