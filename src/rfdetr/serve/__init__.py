"""A web page and an HTTP endpoint for one model: `rfdetr serve`."""
