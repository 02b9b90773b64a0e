import jaxlm.config.pytrees  # noqa: F401 (makes recipes and protocols pytrees)
