"""``python -m trading_bot`` is ``trading-bot``."""

from trading_bot.entrypoints.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
