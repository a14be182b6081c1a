"""The names that KuaiRand's files use; the code of a name is 1 + its index, and 0 is "unknown".

Append, never reorder: a trained model knows the codes.
"""

from __future__ import annotations

ACTIVE_DEGREE = (
    "full_active",
    "high_active",
    "middle_active",
    "low_active",
    "single_low_active",
    "30day_retention",
    "2_14_day_new",
    "day_new",
)
FOLLOW_BAND = ("0", "(0,10]", "(10,50]", "(50,100]", "(100,150]", "(150,250]", "(250,500]", "500+")
FANS_BAND = (
    "0",
    "[1,10)",
    "[10,100)",
    "[100,1k)",
    "[1k,5k)",
    "[5k,1w)",
    "[1w,10w)",
    "[10w,100w)",
    "[100w,1000w)",
)
FRIEND_BAND = ("0", "[1,5)", "[5,30)", "[30,60)", "[60,120)", "[120,250)", "250+")
REGISTER_BAND = ("8-14", "15-30", "31-60", "61-90", "91-180", "181-365", "366-730", "730+")
VIDEO_TYPE = ("NORMAL", "AD")
UPLOAD_TYPE = (
    "LongImport",
    "ShortImport",
    "Kmovie",
    "Web",
    "LongPicture",
    "PictureSet",
    "ShortCamera",
    "LongCamera",
    "ShareFromOtherApp",
    "FollowShoot",
    "PhotoCopy",
    "AiCutVideo",
    "LipsSync",
)
