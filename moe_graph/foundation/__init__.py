"""What everything stands on: the contract, the checks of arguments, products, settings, versions of torch."""
