"""Where images come from: one file a kind of source, which registers it in `base.SOURCES`; `kinds` asks the chosen one."""
