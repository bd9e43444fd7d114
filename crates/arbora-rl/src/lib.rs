//! Policy gradients for discrete decisions inside burn models.
