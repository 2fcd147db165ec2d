"""The tensor-product convolution z_i = sum over edges e -> i of TP(x_src(e), Y_e; w_e)."""
