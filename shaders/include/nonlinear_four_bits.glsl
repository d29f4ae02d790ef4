// The 16 values of IQ4_NL and IQ4_XS (ggml kvalues_iq4nl, -127 to 113) from four signed bits, index - 8. They are this
// quartic rounded: it is nowhere farther than 0.434 from them (the least maximum that a fourth degree can have). A
// table would cost a load or a tree of selections for each weight.
vec4 nonlinear(vec4 x) {
    return roundEven((((1.58604282e-3 * x + 8.18398097e-2) * x - 1.68120539e-2) * x + 11.4398097) * x + 1.43298969);
}
