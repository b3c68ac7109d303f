"""The sentence templates of captions: ours, and of each form at least as many as SensorLM publishes (arXiv 2506.09108).

A template is one sentence that ends in a full stop, with no full stop before a space inside. It contains every field of
its form, so that parsing loses nothing; only `{minutes}` may be missing, because start and end imply it. Templates make
no statement about hours that were not recorded. A statistic is one "of the recording", and an interval that was cut at
midnight does not "begin" or "end" there, it lies between two times.
"""

from __future__ import annotations

STATISTICS = (
    "{channel} averaged {mean}{unit} in the recording, between {minimum} and {maximum}, with a standard deviation of "
    "{deviation}.",
    "The recorded {channel} had a mean of {mean}{unit}, a minimum of {minimum}, a maximum of {maximum} and a standard "
    "deviation of {deviation}.",
    "Recorded {channel}: mean {mean}{unit}, standard deviation {deviation}, lowest {minimum}, highest {maximum}.",
    "{channel} ran from {minimum} to {maximum}{unit} where it was recorded, averaging {mean} with a spread of "
    "{deviation}.",
    "Wherever it was recorded, {channel} lay between {minimum} and {maximum}{unit}; its mean was {mean} and its "
    "standard deviation {deviation}.",
    "The mean of the recorded {channel} was {mean}{unit} (standard deviation {deviation}), its extremes {minimum} and "
    "{maximum}.",
    "Measured {channel} came to {mean}{unit} on average, varied by {deviation} and reached from {minimum} up to "
    "{maximum}.",
    "{channel} measured {mean}{unit} on average, give or take {deviation}, never below {minimum} and never above "
    "{maximum} in the recording.",
    "In the recorded minutes {channel} averaged {mean}{unit}, with {deviation} as standard deviation, {minimum} as the "
    "low and {maximum} as the high.",
    "The recording shows {channel} at {mean}{unit} on average, with a low of {minimum}, a high of {maximum} and a "
    "standard deviation of {deviation}.",
    "Of the recorded {channel}, the highest value was {maximum}{unit}, the lowest {minimum}, the average {mean} and "
    "the standard deviation {deviation}.",
    "{channel}, where measured, centred on {mean}{unit}, spread by {deviation}, and spanned {minimum} to {maximum}.",
    "The sensor put {channel} at {mean}{unit} on average, within {minimum} and {maximum}, deviating by {deviation}.",
    "Readings of {channel} averaged {mean}{unit} and ranged between {minimum} and {maximum}, with a deviation of "
    "{deviation}.",
    "Readings of {channel} peaked at {maximum}{unit}, bottomed at {minimum}, averaged {mean} and scattered by "
    "{deviation}.",
    "The lowest recorded {channel} was {minimum}{unit} and the highest {maximum}, around a mean of {mean} with a "
    "standard deviation of {deviation}.",
    "{channel} was {mean}{unit} on average over its recorded minutes, from {minimum} at the least to {maximum} at the "
    "most, standard deviation {deviation}.",
    "Summing up the recorded {channel}: an average of {mean}{unit}, a range of {minimum} to {maximum} and a standard "
    "deviation of {deviation}.",
    "With a mean of {mean}{unit} and a standard deviation of {deviation}, recorded {channel} stayed within {minimum} "
    "and {maximum}.",
    "A mean {channel} of {mean}{unit} was recorded, with values from {minimum} to {maximum} and a standard deviation "
    "of {deviation}.",
    "On average the recorded {channel} was {mean}{unit}; the values deviated by {deviation} and went from {minimum} to "
    "{maximum}.",
)

# For channels whose rounded values are all equal: one number instead of four, and a deviation of 0.
CONSTANT = (
    "{channel} was {mean}{unit} throughout its recorded minutes.",
    "The recorded {channel} never left {mean}{unit}.",
    "Every reading of {channel} was {mean}{unit}.",
    "Recorded {channel}: {mean}{unit} throughout.",
    "{channel} stood at {mean}{unit} wherever it was recorded.",
)

# Phrases for {moved}; every phrase fits every template.
MOVED = {
    "increase": ("rose", "climbed", "increased", "went up", "trended upward"),
    "decrease": ("fell", "declined", "decreased", "went down", "trended downward"),
    "steady": ("held steady", "stayed level", "barely changed", "remained stable", "hardly moved"),
}
TREND = (
    "{channel} {moved} between {start} and {end}.",
    "{channel} {moved} from {start} to {end}.",
    "From {start} until {end}, {channel} {moved}.",
    "Between {start} and {end} the recorded {channel} {moved}.",
    "{channel} {moved} over the stretch from {start} to {end}.",
    "Over the hours between {start} and {end}, {channel} {moved}.",
    "On the whole, {channel} {moved} between {start} and {end}.",
    "The recording from {start} to {end} shows that {channel} {moved}.",
    "Looking at {start} to {end}, {channel} {moved}.",
    "{channel} {moved} in the time between {start} and {end}.",
    "As recorded from {start} to {end}, {channel} {moved}.",
    "In the time from {start} to {end} the recorded {channel} {moved}.",
    "{channel} {moved}, taken over {start} to {end}.",
    "Taken over {start} to {end}, {channel} {moved}.",
    "Seen from {start} to {end}, {channel} {moved}.",
    "Across the period {start} to {end} one sees that {channel} {moved}.",
)

# Phrases for {turned}. The value is a bin mean, so no template claims that it was the channel's most extreme value.
TURNED = {
    "peak": ("peaked", "spiked", "surged", "stood out high", "came to a high point"),
    "drop": ("dipped", "dropped", "sank briefly", "stood out low", "came to a low point"),
}
EXTREME = (
    "{channel} {turned} around {start}, averaging {value}{unit}.",
    "Around {start}, {channel} {turned} with an average of {value}{unit}.",
    "{channel} {turned} at about {start}, where it averaged {value}{unit}.",
    "At about {start} the recorded {channel} {turned}, averaging {value}{unit}.",
    "Averaging {value}{unit}, {channel} {turned} around {start}.",
    "{channel} {turned} near {start} (average {value}{unit}).",
    "Near {start}, {channel} {turned} (average {value}{unit}).",
    "With an average of {value}{unit}, {channel} {turned} around {start}.",
    "The recording shows that {channel} {turned} around {start}, at {value}{unit} on average.",
    "{channel} {turned} close to {start}, being {value}{unit} on average there.",
    "Close to {start} one sees that {channel} {turned}, with {value}{unit} on average.",
    "{channel} averaged {value}{unit} around {start}, when it {turned}.",
    "{channel} {turned} in the minutes around {start}, its mean there being {value}{unit}.",
    "In the minutes around {start}, {channel} {turned} at a mean of {value}{unit}.",
    "It was around {start} that {channel} {turned}, averaging {value}{unit}.",
    "{channel} {turned} with a local mean of {value}{unit} at about {start}.",
)

ACTIVITY = (
    "The activity log has {name} from {start} to {end}.",
    "The wearer logged {name} between {start} and {end}.",
    "The wearer spent {minutes} on {name}, from {start} to {end}.",
    "Logged activity: {name}, {start} to {end}.",
    "Logged activity: {name}, {minutes} from {start} until {end}.",
    "An activity session of {name} lies between {start} and {end}.",
    "From {start} to {end} the activity was {name}.",
    "From {start} to {end} the wearer was busy with {name}.",
    "Between {start} and {end} the logged activity was {name}.",
    "The log shows activity: {name} from {start} to {end}.",
    "{name} was the activity from {start} to {end}.",
    "{name} was logged as activity between {start} and {end}.",
    "{name} took up {minutes} of activity, {start} to {end}.",
    "Activity between {start} and {end}: {name}.",
    "Activity of {minutes} between {start} and {end}: {name}.",
    "The wearer did some {name} between {start} and {end}.",
    "There was activity, namely {name}, from {start} until {end}.",
    "A workout of {name} filled {start} to {end}.",
    "{minutes} of {name} are in the activity log, from {start} to {end}.",
    "The wearer was active with {name} for {minutes}, from {start} to {end}.",
    "In the activity log, {start} to {end} belongs to {name}.",
)

# For the event "asleep"; SLEEP_NAMED is for other names in the log, such as stages and naps.
SLEEP = (
    "The wearer was asleep from {start} to {end}.",
    "The wearer slept between {start} and {end}.",
    "The wearer slept for {minutes}, from {start} to {end}.",
    "Sleep lasted from {start} until {end}.",
    "Sleep was recorded from {start} to {end}.",
    "Sleep of {minutes} lies between {start} and {end}.",
    "A sleep of {minutes} was recorded, {start} to {end}.",
    "From {start} to {end} the wearer was sleeping.",
    "From {start} until {end} there was sleep.",
    "Between {start} and {end} the wearer was asleep.",
    "Between {start} and {end} sleep was recorded, {minutes} of it.",
    "Asleep: {start} to {end}.",
    "Asleep for {minutes}: {start} to {end}.",
    "The hours of sleep were {start} to {end}.",
    "The time from {start} to {end} was spent asleep.",
    "The sleep log covers {start} to {end}.",
    "The sleep log covers {minutes} from {start} to {end}.",
    "The wearer got {minutes} of sleep between {start} and {end}.",
    "The recorded sleep spans {start} to {end}.",
    "Sound or restless, sleep lasted from {start} to {end}.",
)
SLEEP_NAMED = (
    "The sleep log says {name} from {start} to {end}.",
    "Sleep log, {start} to {end}: {name}.",
    "Under sleep, {name} is logged between {start} and {end}.",
    "{name} stands in the sleep log from {start} to {end}.",
    "{name} is what the sleep log shows for {minutes}, {start} to {end}.",
)

MOOD = (
    "The wearer felt {name} at {start}.",
    "At {start} the wearer felt {name}.",
    "The mood at {start} was {name}.",
    "At {start} the mood was logged as {name}.",
    "A mood was logged at {start}, namely {name}.",
    "Mood at {start}: {name}.",
    "Asked at {start}, the wearer reported feeling {name}.",
    "The wearer described their mood as {name} at {start}.",
    "The mood log reads {name} at {start}.",
    "Feeling {name}, the wearer noted their mood at {start}.",
    "{name} was the mood noted at {start}.",
)

MEAL = (
    "The wearer had {name} from {start} to {end}.",
    "The meal log has {name} between {start} and {end}.",
    "Meal: {name}, {start} to {end}.",
    "{name} was eaten between {start} and {end}.",
    "{name} was logged over {minutes}, {start} to {end}.",
    "From {start} to {end} the wearer was having {name}.",
    "Between {start} and {end} there was {name} to eat.",
    "Mealtime from {start} until {end}: {name}.",
    "The wearer ate, {name} from {start} to {end}.",
    "The meal between {start} and {end} was {name}.",
)
MEAL_MOMENT = (
    "The wearer had {name} at {start}.",
    "The meal log has {name} at {start}.",
    "Meal at {start}: {name}.",
    "{name} was taken at {start}.",
    "At {start} the wearer had {name}.",
    "At {start} the meal log notes {name}.",
)

SESSION = (
    "The {name} session ran from {start} to {end}.",
    "A session labelled {name} lies between {start} and {end}.",
    "Session: {name}, {start} to {end}.",
    "From {start} to {end} the session was {name}.",
    "The study protocol was {name} between {start} and {end}.",
    "The study protocol was {name} for {minutes}, from {start} to {end}.",
    "Between {start} and {end} the wearer took part in the {name} session.",
    "{name} was the session from {start} until {end}.",
    "For {minutes}, {start} to {end}, the wearer followed the {name} protocol.",
    "Recorded under the {name} protocol: {start} to {end}.",
)
MARK = (
    "One {name} was set at {start}.",
    "At {start} the wearer set one {name}.",
    "The recording carries one {name}, at {start}.",
    "A single {name} marks {start}.",
)
MARKS = (
    "The recording carries {count} marks ({name}) between {start} and {end}.",
    "Between {start} and {end} the wearer set {count} marks ({name}).",
    "{count} marks ({name}) were set from {start} to {end}.",
    "There are {count} marks ({name}), the first at {start}, the last before {end}.",
)

FORMS = {
    "statistics": STATISTICS,
    "constant": CONSTANT,
    "trend": TREND,
    "extreme": EXTREME,
    "activity": ACTIVITY,
    "sleep": SLEEP,
    "sleep_named": SLEEP_NAMED,
    "mood": MOOD,
    "meal": MEAL,
    "meal_moment": MEAL_MOMENT,
    "session": SESSION,
    "mark": MARK,
    "marks": MARKS,
}
