"""What clouds say and sell: notices, prices, node pools."""
