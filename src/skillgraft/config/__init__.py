"""What can be chosen: schema, validation, identity, and how configurations are composed."""
