"""The control plane's HTTP faces, and the program behind them: `flash server`."""
