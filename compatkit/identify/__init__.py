"""Header -> components: what models a file holds, and the facts their shapes give."""
