// Carry-save addition for instruction sets without a three-input operation.
#pragma once
#include "scan/inline.h"

namespace metah {
namespace METAH_ISA {

// Two planes x, y of equal weight, kept as (x, x ^ y). Adding two such pairs to a sum then takes 8
// operations instead of the 10 of two full adders (the MDFA block of Demenkov, Kojevnikov, Kulikov
// and Yaroslavtsev, "New upper bounds on the Boolean circuit complexity of symmetric functions",
// Information Processing Letters 110, 2010).
template <class S>
struct XorPair {
    using V = typename S::V;
    V x, p;
    static INLINE XorPair of(V x, V y) { return {x, x ^ y}; }
    INLINE V second() const { return p; }
    static INLINE XorPair stored(V x, V p) { return {x, p}; }
    INLINE V any() const { return x | p; }
    // sum += x + y; returns the carry.
    INLINE V add_to(V& sum) const {
        V low = sum ^ p;
        V carry = low ^ (p | (x ^ sum));
        sum = low;
        return carry;
    }
    // sum += a + b; returns the two carries.
    static INLINE XorPair add(V& sum, const XorPair& a, const XorPair& b) {
        V low = sum ^ a.p;
        V either = a.p | (a.x ^ sum);
        sum = low ^ b.p;
        return {low ^ either, either ^ (~b.p & (b.x ^ low))};
    }
};

}  // namespace METAH_ISA
}  // namespace metah
