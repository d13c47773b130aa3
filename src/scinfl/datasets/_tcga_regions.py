"""Where the hospitals of The Cancer Genome Atlas are.

The second part of a barcode, ``TCGA-A2-…``, is the tissue source site: a hospital or biobank and the cancer that it
sent. Which hospital a code denotes is in the code tables of the Genomic Data Commons
(https://gdc.cancer.gov/resources-tcga-users/tcga-code-tables/tissue-source-site-codes). The codes of nine cancers with
many hospitals (BLCA, BRCA, COAD, LUAD, LUSC, PAAD, PRAD, READ, SKCM) are placed here as in the tables of our
benchmarks: regions of the United States as its census bureau cuts them, Canada, Europe, and others. Walter Reed (A2)
counts as West and the biobank ILSBio as Canada there, though both are at home in Maryland; a site of a federation need
not be a place, so the cut is kept.
"""

from __future__ import annotations

UNMAPPED = "unmapped"

_CODES = {
    "Canada": "18 63 70 71 75 79 80 C8 CA CF DT HN HQ HR IB M8 YL",
    "Europe": "05 2F 2L 58 5N 62 66 A8 AA AG C4 CH D5 D8 D9 EI FS NC SU SY WE Z2 ZF ZG",
    "Midwest": (
        "22 2J 68 69 6A 85 86 90 91 92 93 AR DM DY E7 E9 EB F4 F5 FB FC FD GD GF GI GV H8 H9 L3 L4 LQ LT MF "
        "MP MS MV NJ NK OL QL RU S4 WT XA XJ XX YB YC YD"
    ),
    "Northeast": (
        "21 2A 34 39 3C 3E 3L 50 60 64 73 96 97 AO AZ BH BT CI CK CL CM DA DC DK E2 E5 EJ ER G4 G5 G9 GN HI "
        "J1 J2 J4 K4 KC KQ L1 LC LD LH OK PE PZ QU S2 S3 TP UL XC YY"
    ),
    "Other": "4Z 5L 5M 77 78 EE HV J9 JL OD OE PL US X4 XN XQ",
    "South": (
        "33 38 3A 3N 43 44 46 49 4B 4N 4T 51 52 53 5T 67 94 95 98 99 A6 A7 AF AQ AU AY B6 BL BM CU D3 EW F2 "
        "FJ FR FT G2 GM GU H4 H6 IH KK L9 LA LB LL M7 MG MN NH O1 O2 Q3 QB QG RB S5 SS TK UU V7 VN VP W8 WW "
        "XV YF YG"
    ),
    "West": (
        "35 37 4H 4L 55 56 83 A1 A2 AC AD AH AM AN BF EF FW GC HC HZ PQ R3 RL RP T9 UY V1 W3 XD XF XK Y6 YH YJ Z5 Z7"
    ),
}


def regions() -> dict[str, str]:
    """Region of every placed tissue source site, by its code."""
    return {code: region for region, codes in _CODES.items() for code in codes.split()}
