import jaxlm.training  # noqa: F401 (makes recipes and protocols pytrees)
