"""Past one machine: where the stages run when a laptop is too small for them."""
