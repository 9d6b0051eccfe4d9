"""The public face of Headrace; names load on first use so that ``import headrace`` stays light."""
