"""From a torch model to the bundle that a device is provisioned with."""
