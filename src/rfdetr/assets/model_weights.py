"""Published weights by the path of release 1.6."""

from __future__ import annotations

from rfdetr.checkpoints.download import cache_folder, find_weights


def download_pretrain_weights(pretrain_weights: str, redownload: bool = False, validate_md5: bool = True) -> str:
    """Fetch a published file unless it is here, and return its path. What is fetched is always checked.

    Args:
        redownload: fetch it anew; a file of that name in the cache folder makes way when the new one is complete.
        validate_md5: accepted for older scripts.

    Raises:
        FileNotFoundError, ConnectionError: it is no published file, or cannot be fetched.
    """
    cached = cache_folder() / pretrain_weights
    if not redownload or not cached.is_file():
        return str(find_weights(pretrain_weights))
    aside = cached.with_name(cached.name + ".before")
    cached.replace(aside)
    try:
        found = find_weights(pretrain_weights)
    except BaseException:
        aside.replace(cached)
        raise
    aside.unlink()
    return str(found)
