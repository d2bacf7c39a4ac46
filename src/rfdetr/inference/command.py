from rfdetr.commands.predict import _to_json, _to_text, sides  # noqa  (temporary)
from rfdetr.loading import open_model as load_model  # noqa
