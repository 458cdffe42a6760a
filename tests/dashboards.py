"""What the panels of a dashboard show."""


def shown(panel):
    """(keys that a panel names, pattern of keys that it shows or None)."""
    keys = [*(getattr(panel, "media_keys", None) or []), *(getattr(panel, "y", None) or [])]
    keys += [metric.name for metric in (getattr(panel, "metrics", None) or [])]
    for name in ("metric", "table_name"):
        if value := getattr(panel, name, None):
            keys.append(getattr(value, "name", value))
    return keys, getattr(panel, "metric_regex", None)
