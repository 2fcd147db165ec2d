"""The tensor-product convolution with weights interpolated from a table: no row of weights an edge is ever written."""
